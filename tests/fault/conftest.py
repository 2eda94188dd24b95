"""The fault tests' fixtures."""

from tests.support.crash_fixtures import prepare, quick_folder, quiet, still_inputs

__all__ = ["prepare", "quick_folder", "quiet", "still_inputs"]
