"""Shared by all rooms: structures, boxes, captions, settings, errors, files, downloads."""
