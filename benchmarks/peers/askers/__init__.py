"""One module for each engine: how it is loaded, asked, and how much memory it took."""
