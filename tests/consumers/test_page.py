"""Trainers and vector stores on the snippets of docs/consumers.md; run by 'make test-consumers', which skips nothing."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.support.command import REPOSITORY
from tests.support.consumers_page import Place, snippets


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Place:
    """A lake on which every shell snippet of the page was run."""
    place = Place(tmp_path_factory.mktemp("page"))
    place.run_shell()
    return place


@pytest.fixture(autouse=True)
def here(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    """Snippets are run in the place's folder, and ask no network."""
    monkeypatch.chdir(place.folder)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("HF_HOME", str(place.folder / "hugging-face"))
    monkeypatch.setenv("PATH", f"{place.folder / 'bin'}:/usr/bin:/bin")


def code(name: str) -> str:
    """A snippet by the last word of its kind."""
    (found,) = [code for kind, code in snippets() if kind.split()[-1] == name]
    return found


def do(place: Place, name: str, **names: Any) -> dict[str, Any]:
    """Run a snippet; returns the names that it leaves."""
    exec(place.here(code(name)), names)
    return names


def tiny_model(folder: Path) -> Path:
    """A model of a few thousand weights, and a tokenizer of bytes with a chat template, made from their configurations."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    letters = Tokenizer(models.BPE())
    letters.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    letters.decoder = decoders.ByteLevel()
    special = ["<pad>", "<eos>", "<|user|>", "<|assistant|>"]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    letters.train_from_iterator(
        [""], trainers.BpeTrainer(vocab_size=270, special_tokens=special, initial_alphabet=alphabet)
    )
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=letters, pad_token="<pad>", eos_token="<eos>")
    tokenizer.chat_template = (
        "{% for message in messages %}<|{{ message['role'] }}|>{{ message['content'] }}<eos>{% endfor %}"
        "{% if add_generation_prompt %}<|assistant|>{% endif %}"
    )
    config = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2,
        num_key_value_heads=2, pad_token_id=0, eos_token_id=1,
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def test_trl_trains_a_step_with_the_chat_template(place: Place) -> None:
    """SFTTrainer and DPOTrainer take a step on the trl form without any mapping, and the chat template is applied."""
    model = tiny_model(place.folder / "model")
    names: dict[str, Any] = {}
    page = (REPOSITORY / "docs" / "consumers.md").read_text()
    (without_gpu,) = re.findall(r"Without a GPU, add `(.+)` to both", page)
    on_cpu = code("trl").replace('report_to="none"', f'report_to="none", {without_gpu}')
    exec(place.here(on_cpu).replace("MODEL", str(model)), names)
    for trainer in (names["sft"], names["dpo"]):
        assert trainer.state.global_step == 1
        row = trainer.train_dataset[0]
        text = trainer.processing_class.decode(row["input_ids"] if "input_ids" in row else row["prompt_ids"])
        assert text.startswith("<|user|>")


def test_torchtune_reads_both_of_its_forms(place: Place) -> None:
    """Each row becomes a question and an answer with the texts of the row."""
    names = do(place, "torchtune")
    rows = [json.loads(line) for line in (place.snapshot / "alpaca/sft/train.jsonl").read_bytes().splitlines()]
    for read in (names["alpaca"], names["openai"]):
        assert len(read) == len(rows)
        for found, row in zip(read, rows, strict=True):
            user, assistant = found["messages"]
            assert row["instruction"] in user.text_content
            assert row["input"] in user.text_content
            assert assistant.text_content == row["output"]


def axolotl_rows(place: Place, name: str) -> tuple[str, list[dict[str, Any]]]:
    """The type that a config of the page names, and the rows as Axolotl loads them."""
    from datasets import load_dataset

    (dataset,) = yaml.safe_load(place.here(code(name)))["datasets"]
    rows = load_dataset(dataset["ds_type"], data_files=dataset["path"], split="train")
    assert len(rows) > 0
    return dataset["type"], list(rows)


def test_axolotl_tokenizes_alpaca_rows(place: Place) -> None:
    """Axolotl's own strategy makes a prompt of instruction and input, and learns the output alone."""
    from axolotl.prompt_tokenizers import IGNORE_INDEX, AlpacaPromptTokenizingStrategy
    from axolotl.prompters import AlpacaPrompter
    from transformers import AutoTokenizer

    kind, rows = axolotl_rows(place, "axolotl")
    assert kind == "alpaca"
    tokenizer = AutoTokenizer.from_pretrained(tiny_model(place.folder / "axolotl-model"))
    strategy = AlpacaPromptTokenizingStrategy(AlpacaPrompter(), tokenizer, False, 100_000)
    for row in rows:
        found = strategy.tokenize_prompt(row)
        learned = [label for label in found["labels"] if label != IGNORE_INDEX]
        prompt = tokenizer.decode(found["input_ids"][: -len(learned)])
        assert row["instruction"] in prompt
        assert row["input"] in prompt
        assert tokenizer.decode(learned) == row["output"] + "<eos>"


def test_axolotl_reads_pairs_of_text(place: Place) -> None:
    """Axolotl's own transform puts the chat marks around the texts of a pair."""
    from axolotl.prompt_strategies.dpo import load

    kind, rows = axolotl_rows(place, "axolotl-pairs")
    for row in rows:
        found = load(kind, None)(dict(row))
        for key in ("prompt", "chosen", "rejected"):
            assert row[key] in found[key] != row[key]


def embed(text: str) -> list[float]:
    """A stand-in for a model: four numbers that follow from the text."""
    return [float(len(text)), float(text.count("a")), float(text.count("e")), float(sum(text.encode()) % 97)]


@pytest.fixture
def feed(place: Place) -> Any:
    """The page's own function that asks for changes."""
    return do(place, "changes")["changes"]


def reject_some(place: Place, name: str) -> None:
    """Runs that ship are rejected, and new ones come."""
    exported = rag_rows(place)
    path = place.root / "data/scored-runs/2030/01/01" / name
    path.parent.mkdir(parents=True, exist_ok=True)
    gone = [row["source_run_id"] for row in exported.values()][:7]
    path.write_text("".join(json.dumps({"evidence_run_id": run, "category": "rejected"}) + "\n" for run in gone))
    place.bring_up_to_date()
    assert len(rag_rows(place)) == len(exported) - 7


def rag_rows(place: Place) -> dict[str, Any]:
    """The rows of the RAG dataset by id."""
    lines = (place.root / "exports/rag/playbooks.jsonl").read_bytes().splitlines()
    return {row["id"]: row for row in map(json.loads, lines)}


def test_lancedb_follows_by_changes(place: Place, feed: Any) -> None:
    """A LanceDB table that lives on changes alone has the rows of the dataset, those that left no more."""
    import lancedb

    since = "0"
    for name in ("first.jsonl", "second.jsonl"):
        since = do(place, "lancedb", changes=feed, embed=embed, since=since)["through"]
        table = lancedb.connect("index").open_table("rag")
        found = {row["id"]: row["text"] for row in table.to_arrow().to_pylist()}
        assert found == {id_: row["content"] for id_, row in rag_rows(place).items()}
        reject_some(place, f"lancedb-{name}")


def test_qdrant_follows_by_changes(place: Place, feed: Any) -> None:
    """A Qdrant collection in memory that lives on changes alone has the rows of the dataset."""
    from qdrant_client import QdrantClient

    client = QdrantClient(":memory:")
    since = "0"
    for name in ("first.jsonl", "second.jsonl"):
        since = do(place, "qdrant", changes=feed, embed=embed, since=since, client=client)["through"]
        points, _ = client.scroll("rag", limit=10_000)
        found = {point.payload["id"]: point.payload["text"] for point in points if point.payload}
        assert found == {id_: row["content"] for id_, row in rag_rows(place).items()}
        reject_some(place, f"qdrant-{name}")


def test_langchain_documents_keep_their_ids(place: Place) -> None:
    """Each document has the id of its row, so that an index can delete it."""
    documents = do(place, "langchain")["documents"]
    rows = [json.loads(line) for line in (place.snapshot / "rag/train.jsonl").read_bytes().splitlines()]
    assert [(each.id, each.page_content) for each in documents] == [(row["id"], row["text"]) for row in rows]


_LLAMA_FACTORY = """
import json, sys
from importlib.machinery import ModuleSpec
from types import ModuleType
sys.modules["torchaudio"] = ModuleType("torchaudio")  # it is imported at the top, and none fits torch for CPUs
sys.modules["torchaudio"].__spec__ = ModuleSpec("torchaudio", None)
from llamafactory.data.loader import _get_merged_dataset
from llamafactory.hparams import DataArguments, ModelArguments
from transformers import Seq2SeqTrainingArguments
read = {}
for name in json.loads(sys.argv[2]):
    arguments = DataArguments(dataset=[name], dataset_dir=sys.argv[1])
    stage = "rm" if "preference" in name else "sft"
    training = Seq2SeqTrainingArguments(output_dir="out")
    rows = _get_merged_dataset([name], ModelArguments(model_name_or_path="none"), arguments, training, stage)
    read[name] = [{"prompt": row["_prompt"], "response": row["_response"]} for row in rows]
print(json.dumps(read))
"""


def test_llama_factory_reads_every_entry_of_dataset_info(place: Place) -> None:
    """LLaMA-Factory's own loader and converter give each row's question and answers, and train holds no validation row."""
    infos = json.loads((place.snapshot / "dataset_info.json").read_bytes())
    assert {"alpaca_sft", "alpaca_preference", "openai_sft", "raw_sft", "raw_preference"} < set(infos)
    python = str(REPOSITORY / ".venv-llama-factory" / "bin" / "python")
    told = place.run(python, "-c", _LLAMA_FACTORY, str(place.snapshot), json.dumps(list(infos)))
    answer = json.loads(told.splitlines()[-1])
    for name, info in infos.items():
        rows = [json.loads(line) for line in (place.snapshot / info["file_name"]).read_bytes().splitlines()]
        assert len(answer[name]) == len(rows) > 0
        for found, row in zip(answer[name], rows, strict=True):
            if "preference" in name:
                wanted = [row["chosen"], row["rejected"]]
            elif "messages" in row:
                wanted = [row["messages"][1]["content"]]
            else:
                wanted = [row.get("output") or row["response"]]
            assert [each["content"] for each in found["response"]] == wanted
            question = row.get("prompt") or row.get("instruction") or row["messages"][0]["content"]
            assert question in found["prompt"][0]["content"]
