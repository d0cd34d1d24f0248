// The tasks: their form fields, and how to show an answer as bars and as merged tokens.

const bars = (pairs) => pairs.map(([label, score]) => ({ label, score }));

// Slots of a text and of each image that it is read with.
const views = (slots) =>
  slots.map(({ image_slots, text_slots, grid, protected: kept }) =>
    // Without a grid, image tokens are not patches: show the image unchanged.
    grid
      ? { slots: image_slots, grid, protected: kept, textSlots: text_slots }
      : { slots: [0], grid: [1, 1], protected: 0, textSlots: text_slots },
  );

export const TASKS = {
  classify: {
    title: "Classify",
    bars: ({ predictions }) => bars(predictions.map(({ label, score }) => [label, score])),
    views: ({ slots, grid, protected: kept }) => [{ slots, grid, protected: kept, textSlots: [] }],
    pieces: () => [],
  },
  vqa: {
    title: "Ask",
    field: "question",
    kind: "Question",
    example: "What colour is the circle?",
    bars: ({ answers }) => bars(answers.map(({ answer, score }) => [answer, score])),
    views: ({ slots }) => views(slots),
    pieces: ({ text }) => text.pieces,
  },
  entail: {
    title: "Entail",
    field: "hypothesis",
    kind: "Hypothesis",
    example: "There is a red circle.",
    bars: ({ scores }) => bars(Object.entries(scores).sort(([, a], [, b]) => b - a)),
    views: ({ slots }) => views(slots),
    pieces: ({ text }) => text.pieces,
  },
  reason: {
    title: "Reason",
    field: "statement",
    kind: "Statement about both images",
    example: "There are more circles on the left.",
    images: 2,
    bars: ({ score }) => bars([["true", score], ["false", 1 - score]]),
    views: ({ slots }) => views(slots),
    pieces: ({ text }) => text.pieces,
  },
  match: {
    title: "Match",
    field: "text",
    kind: "Texts, one per line",
    example: "a red circle\ntwo blue squares",
    several: true,
    bars: ({ scores }, { texts_sent: texts }) => bars(scores.map((score, at) => [texts[at], score])),
    // Slots of the best matching text.
    views: ({ slots, scores }) => views([slots[best(scores)]]),
    pieces: ({ scores }, { texts }) => texts[best(scores)].pieces,
  },
};

function best(scores) {
  return scores.indexOf(Math.max(...scores));
}
