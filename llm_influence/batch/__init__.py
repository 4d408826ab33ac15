"""Long work over many users, on any number of processes, that resumes."""
