"""The programs of this folder run in `test_troubles.py`, not while tests are collected."""

collect_ignore_glob = ["[0-9]*.py"]
