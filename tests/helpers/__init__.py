"""What several test modules share: tiny models, files, servers and browsers."""
