"""A JSON API over one model, and a page that asks it "what if"."""
