"""Other people's weight files, read into our models and written from them."""
