"""Tables of names, a file for each library."""
