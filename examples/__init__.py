"""Programs to read and change; the tests run them."""
