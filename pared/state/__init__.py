"""What must survive: settings, tables, objects and the queue. Never imports torch or fastapi."""
