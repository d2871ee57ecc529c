"""Files of torch.save and pickles of arrays, read without executing anything."""
