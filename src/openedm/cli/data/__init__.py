"""`openedm data …`: data made ready for training. One sub-command a file."""

COMMANDS = {
    "convert": "crop and resize pictures into shards with a manifest",
}
