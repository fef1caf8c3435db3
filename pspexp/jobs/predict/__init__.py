"""``mode=predict``: the classes of images, as files."""
