"""From tables to a page: figures, formatting, transcripts, templates."""
