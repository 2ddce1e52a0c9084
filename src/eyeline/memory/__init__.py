"""The teacher's memory: its targets for each view of each training image, asked for once, kept on disk."""
