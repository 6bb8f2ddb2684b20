"""The report of a run: ``content`` gathers it, ``write`` writes it as HTML, JSON, Markdown and CSV."""
