"""What many streams at once cost: memory, open files and event-loop lag of provider and edge while a vendor is slow."""
