"""One self-contained page of a study: tables, pictures, how it was made."""
