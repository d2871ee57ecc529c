"""Every file format of an embedding, read and written; `registry` lists them."""
