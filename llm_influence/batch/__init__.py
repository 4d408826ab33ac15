"""Long work over many users, on any number of processes. It resumes after a kill."""
