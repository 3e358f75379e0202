"""The page, the card and the table that `export.report` makes of what was measured."""
