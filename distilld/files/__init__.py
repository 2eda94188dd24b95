"""Durable writes, safe ways to open a file, and temporary storage of lines before they are written."""
