"""What a user asks for: arguments read and checked, recipes, options, schedules of gains."""
