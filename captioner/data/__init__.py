"""Caption data: caption files, batches of images and captions, and the feature cache.

`annotations.read_captions` reads any caption file into `Example`s; `features.build_features` runs a
frozen encoder over the images once; `dataset` and `sampler` feed the training.
"""
