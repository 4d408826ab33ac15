"""Programs for the environments of other libraries; they import nothing of llm_influence."""
