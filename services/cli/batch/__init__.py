"""`llmmesh batch`: files of questions whose answers can wait."""
