"""Caption metrics and statistics. Know neither models nor files."""
