"""The world that the demo model knows: scenes, pages, and questions about them; no torch here."""
