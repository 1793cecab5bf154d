(view, style, strength) => (view && view.sentences ? { ...view, style, strength } : view)
