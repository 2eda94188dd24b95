"""The sample lake of the demo, with the names of its parts."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from distilld.demo.sample_lake import write_sample_lake


@dataclass(frozen=True, slots=True)
class SampleLake:
    """A sample lake; ``partitions`` are in walk order, and each is in both trees."""

    root: Path

    @classmethod
    def write(cls, root: Path) -> SampleLake:
        """Write the sample lake below ``root``."""
        write_sample_lake(root)
        return cls(root)

    @property
    def partitions(self) -> tuple[str, ...]:
        """The paths of its partitions."""
        tree = self.root / "data/scored-runs"
        return tuple(sorted(str(path.relative_to(tree)) for path in tree.rglob("*.jsonl")))

    @property
    def scored_rows(self) -> int:
        """How many scored rows it holds, malformed ones too."""
        return sum(self.scored_path(each).read_bytes().count(b"\n") for each in self.partitions)

    def scored_path(self, partition: str) -> Path:
        """The path of a partition's scored file."""
        return self.root / "data/scored-runs" / partition

    def evidence_path(self, partition: str) -> Path:
        """The path of a partition's evidence file."""
        return self.root / "data/evidence" / partition
