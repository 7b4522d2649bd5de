"""What a run shows: figures, statistics, tables, plots and the page."""
