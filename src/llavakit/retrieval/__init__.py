"""Find pages of documents by what they show, and answer from them."""
