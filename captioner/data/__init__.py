"""Caption data: reading caption files, splits, batches of photos x captions, and the feature cache.

`splits.read_captions` turns a COCO JSON, a Karpathy JSON or a JSONL file into a list of
`examples.Example`; `features.build_features` runs a frozen encoder over the photos once;
`batches.CaptionDataset`, `batches.LengthAwareSampler` and `batches.collate` feed training.
"""
