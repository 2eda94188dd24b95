"""distilld keeps three training datasets exactly up to date with the scored runs of a lakehouse."""

__version__ = "0.1.0"
