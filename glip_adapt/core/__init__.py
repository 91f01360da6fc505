"""What everything else speaks: structures, boxes, captions, settings, files."""
