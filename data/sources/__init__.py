"""From a source's path to its files, and from a file to its documents, one at a time. A format has a file of its own."""

from data.sources.listing import InputFile, extents, list_files, require_unchanged
from data.sources.reading import read_file

__all__ = ["InputFile", "extents", "list_files", "read_file", "require_unchanged"]
