"""Prepare captioned images for training: public data sets, and captions of one's own.

Public sets: `registry` lists the archives, `download` and `fetch` get and unpack them, and
`public_sets` reads their captions and splits. Own captions: `custom` checks and splits them,
`near_duplicates` finds images that are the same. `write` writes the caption file.
"""
