"""`openedm data …`: prepare training data. One command a file."""

COMMANDS = {
    "convert": "crop and resize images into shards with a manifest",
    "encode": "encode images once, for training in the latents of an autoencoder",
}
