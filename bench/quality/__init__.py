"""What distilling gives for a budget of time: arms as processes, one measure, and its intervals."""
