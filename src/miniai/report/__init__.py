"A run as one HTML page, and pictures of it: from what was recorded."
