"""Measuring captions and attention.

BLEU, ROUGE-L and CIDEr-D equal the official coco-caption figures without Java; attention is
measured against object masks; the report joins them.
"""
