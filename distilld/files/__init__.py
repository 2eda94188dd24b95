"""The few calls of every durable write, safe ways to open a file, and lines that wait to be written."""
