"""Videos of known content, which the program makes itself."""
