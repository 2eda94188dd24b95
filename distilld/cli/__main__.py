"""``python -m distilld.cli``, where the console script is not installed."""

from distilld.cli import main

main()
