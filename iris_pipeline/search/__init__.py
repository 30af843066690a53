"""How scans are shown to the network: pose, scale, grey values and tones, found on the references alone."""
