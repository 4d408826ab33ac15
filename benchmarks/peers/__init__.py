"""Programs that run in the environments of other libraries; they import nothing of llm_influence."""
