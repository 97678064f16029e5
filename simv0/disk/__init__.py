"""Files that are written atomically, and locks that end with their process. Imports only `simv0.errors`.

Used from outside: `files.write_atomically`, `files.sync_folder`, `folders.write_folder`, `locks.FileLock`.
"""
