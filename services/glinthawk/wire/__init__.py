"""The wire: frames, transports and control messages between the processes of Glinthawk.

Protobuf types do not leave this room: other rooms see the frozen data of `messages`.
"""
