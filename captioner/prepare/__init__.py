"""Captioned photos made ready for training: public data sets, and captions of one's own.

`command.prepare` is ``captioner prepare``. Public sets: `datasets` says what there is to get,
`fetch` gets it (`download`, `unpack`), `coco` and `flickr` turn it into caption files with splits;
Karpathy's split of COCO is part of the package (`karpathy`). Own captions: `rows` reads them, `own`
checks and splits them, `duplicates` finds photos that are the same, `report` tells what was found.
"""
