"""Small tools without knowledge of captioning: files, locks, threads, devices."""
