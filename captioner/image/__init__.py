"""Images: reading any file safely, the encoder's preprocessing, and drawing attention."""
