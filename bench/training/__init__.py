"""Ways to distil one student from one teacher, each a process of its own, and what they gave."""
