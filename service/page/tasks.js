// What can be asked, and how each answer is shown: as bars, and as tokens of images and of a text.

const bars = (pairs) => pairs.map(([label, score]) => ({ label, score }));

// Of a text that is read with images: where its tokens and theirs ended up.
const views = (slots) =>
  slots.map(({ image_slots, text_slots, grid, protected: kept }) =>
    // Without a grid the image's tokens are no patches: the image is shown as it is.
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
    kind: "Does this follow from the image?",
    example: "There is a red circle.",
    bars: ({ scores }) => bars(Object.entries(scores).sort(([, a], [, b]) => b - a)),
    views: ({ slots }) => views(slots),
    pieces: ({ text }) => text.pieces,
  },
  reason: {
    title: "Reason",
    field: "statement",
    kind: "Is this true of the two images?",
    example: "There are more circles on the left.",
    images: 2,
    bars: ({ score }) => bars([["true", score], ["false", 1 - score]]),
    views: ({ slots }) => views(slots),
    pieces: ({ text }) => text.pieces,
  },
  match: {
    title: "Match",
    field: "text",
    kind: "Which of these fits the image? One text a line",
    example: "a red circle\ntwo blue squares",
    several: true,
    bars: ({ scores }, { asked }) => bars(scores.map((score, at) => [asked[at], score])),
    // Of the text that fits best.
    views: ({ slots, scores }) => views([slots[best(scores)]]),
    pieces: ({ scores }, { texts }) => texts[best(scores)].pieces,
  },
};

function best(scores) {
  return scores.indexOf(Math.max(...scores));
}
